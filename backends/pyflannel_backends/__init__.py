"""The backends that come with pyflannel; plugins like any other, on the public API alone."""
