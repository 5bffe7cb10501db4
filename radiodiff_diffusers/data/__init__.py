"""Data sets and what makes them: RadioMapSeer, indoor maps, micro-Doppler images, simulated cities, the Hub."""
