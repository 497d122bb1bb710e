"""The stores that come with pyflannel; plugins like any other, on the public API alone."""
