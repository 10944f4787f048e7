"""What conversion and quantization lost, measured against a reference, and whether that is acceptable."""
