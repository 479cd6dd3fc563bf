"""Federated rounds: the Flower app that stations and server run, and what lets a station take part when it is idle."""
