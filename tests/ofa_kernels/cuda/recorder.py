"""A library that launches nothing, and what it was asked."""

import struct
from unittest import mock

from ofa_kernels.cuda import library
from ofa_kernels.structs import STRUCTS


class Recorder:
    """A library that writes down what it is asked."""

    def __init__(self, workspace=0, error=0):
        self.workspace, self.error, self.asked, self.run = workspace, error, [], []

    def operator(self, name):
        def launch(call, where):
            self.run.append((name, struct.unpack("@4q", where)))
            return self.error

        def workspace(call, device):
            self.asked.append(name)
            return self.workspace

        real = library._operator(mock.MagicMock(), name)
        return real._replace(launch=launch, workspace=workspace)

    def library(self):
        operators = {name: self.operator(name) for name in STRUCTS}
        return library.Library(operators, library.EMULATED, lambda: b"an illegal address", True)
