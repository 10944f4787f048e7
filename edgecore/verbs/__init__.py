"""What the command line and Python users share: each verb once, as a function over the parts below it."""
