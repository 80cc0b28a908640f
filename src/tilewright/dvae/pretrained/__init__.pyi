from .openai import OpenAI as OpenAI
