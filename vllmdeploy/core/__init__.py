"""Values that every layer shares; nothing but the standard library."""
