"""What `ratplus bench` measures: operators, models, training steps, and the report of a large sweep."""
