"""What is done with files of weights: listed, inspected, converted, compared, interpolated, checked."""
