"""Making a station a service: what goes where on a machine, or into the image of one."""
