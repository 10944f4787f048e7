"""One method of measuring for every backend, so that two numbers can be put side by side."""
