"""medcls: medical-image classification with transfer learning."""

__version__ = "0.1.0"
