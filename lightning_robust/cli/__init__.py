"""The ``lightning-robust`` command. Importing it loads neither torch nor Lightning."""
