"""The measurements of scripts/bench, each beside a baseline of the same run. One module for each group of them."""
