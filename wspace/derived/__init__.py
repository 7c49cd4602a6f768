"""Tensors that no file holds as they are: computed, as they are read, from ones that files hold."""
