"""What runs a layer: the native ops, their gradients, and everything that is checked first.

Nothing in here is public.
"""
