"""medcls: medical-image classification with transfer learning."""

__version__ = "0.2.0"
