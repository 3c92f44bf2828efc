"""Scripts that fit one data set by several engines and compare them."""
