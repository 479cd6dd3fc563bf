"""A policy of the station learns from the station's own episodes, by lerobot's training code, in a process of its own.

plan.py         what is to be learnt from what: judged before anything heavy is imported
messages.py     what the training process says
supervise.py    starts it, listens to it, and makes a bundle of what it leaves
process.py      the training process
learner.py      policy, optimiser and rows of the dataset
saved.py        checkpoints that a kill at any moment leaves whole
curve.py        the losses, for people
"""
