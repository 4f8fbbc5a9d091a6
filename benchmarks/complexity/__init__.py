"""Forward and backward time and peak memory of slot attention's refinement against the number of iterations n."""
