"""What runs inside the sandbox: only the standard library and the drawing package, nothing of mmrl."""
