"""A simulated API server and GitHub on loopback sockets: for the demo, tests and users' own CI."""
