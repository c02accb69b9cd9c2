"""Tables of the README and of docs/, each from one file of benchmarks/results/. `benchmarks.readme` puts them there."""
