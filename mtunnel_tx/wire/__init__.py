"""Pure: bytes and values in, values out."""
