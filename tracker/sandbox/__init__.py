"""A simulated API server and a simulated GitHub on loopback sockets, for the demo, the tests and users' own CI."""
