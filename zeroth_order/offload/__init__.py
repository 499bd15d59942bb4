"""Parameters that live in host memory and stream through the accelerator."""
