"""Packed pools: millions of images of one size in one file, mapped into memory."""
