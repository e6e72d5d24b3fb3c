"""What every route shares: the server, the limits of a request, authentication, problem details."""
