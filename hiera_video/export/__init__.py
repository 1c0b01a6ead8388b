"""Handing a model over: the forms that others read, each tried against the model itself."""
