"""How people and programs reach the station."""
