"""What the tests share: servers, fakes at the provider, in-process services."""
