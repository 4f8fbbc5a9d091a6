"""What runs the cells of a grid, on this machine or elsewhere: each only has to start `implicit-slate cell DIR`."""
