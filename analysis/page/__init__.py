"""How results are shown: the report and a comparison as one HTML page each, a module of figures as a notebook."""
