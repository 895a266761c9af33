"""The Triton backend. Importing this package does not import triton; its modules other than ``backend`` do."""
