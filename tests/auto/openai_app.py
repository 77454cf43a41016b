"""An application that knows the `openai` client and nothing else; it prints the id of what it was answered."""

import openai

client = openai.OpenAI(api_key="none", max_retries=0)
completion = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello?"}])
print("response", completion.id)
