"""Measurements that the documentation states; `make bench` runs them."""
