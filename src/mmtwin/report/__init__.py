"""Files that people look at: data in, text out."""
