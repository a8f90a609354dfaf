"""What a person is shown of a sweep, as text or JSON: tables, status, plans and records. Nothing here runs anything."""
