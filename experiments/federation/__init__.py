"""Whether stations that each know a part of the world learn more together: three of them, one policy, one table."""
