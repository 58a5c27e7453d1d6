"""Agents: reasoners, calls, models and notes. What is public here is exported by ``agentfield`` itself."""

from agentfield.agent.agent import Agent
from agentfield.agent.ai import AIConfig

__all__ = ["AIConfig", "Agent"]
