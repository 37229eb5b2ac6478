"""Chat templates that only ever append, for models whose own template rewrites its history.

Many templates drop earlier thinking, or an empty thinking block, when a later message arrives. Rolled out
turn by turn, such a model would be trained on conversations that it never sees in use. Pass a template of
this module as `ChatRenderer(..., chat_template=HERMES_TEMPLATE)` instead.
"""

HERMES_TEMPLATE = r"""
{%- set skip_thought = enable_thinking is defined and enable_thinking is false -%}
{%- set opening = messages[0].content if messages and messages[0].role == "system" else "" -%}
{%- if tools or opening -%}
{{- "<|im_start|>system\n" + opening -}}
{%- if tools -%}
{{- "\n\n" if opening else "" -}}
{{- "You can call these functions. Each line is one JSON description:\n<tools>" -}}
{%- for tool in tools -%}
{{- "\n" -}}{{- tool | tojson -}}
{%- endfor -%}
{{- "\n</tools>\nWrite each call as a JSON object with its name and arguments, between tags:\n" -}}
{{- '<tool_call>\n{"name": <function name>, "arguments": <JSON object>}\n</tool_call>' -}}
{%- endif -%}
{{- "<|im_end|>\n" -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == "tool" -%}
{%- if loop.first or messages[loop.index0 - 1].role != "tool" -%}
{{- "<|im_start|>user" -}}
{%- endif -%}
{{- "\n<tool_response>\n" + message.content + "\n</tool_response>" -}}
{%- if loop.last or messages[loop.index0 + 1].role != "tool" -%}
{{- "<|im_end|>\n" -}}
{%- endif -%}
{%- elif message.role == "assistant" -%}
{{- "<|im_start|>assistant\n" -}}
{%- if skip_thought -%}
{{- "<think>\n\n</think>\n\n" -}}
{%- elif message.reasoning_content -%}
{{- "<think>\n" + message.reasoning_content + "\n</think>\n\n" -}}
{%- endif -%}
{{- message.content or "" -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{{- "\n" if message.content or not loop.first else "" -}}
{{- '<tool_call>\n{"name": ' -}}{{- call.name | tojson -}}{{- ', "arguments": ' -}}
{{- call.arguments if call.arguments is string else call.arguments | tojson -}}
{{- "}\n</tool_call>" -}}
{%- endfor -%}
{{- "<|im_end|>\n" -}}
{%- elif message.role == "user" or not loop.first -%}
{{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- "<|im_start|>assistant\n" -}}
{{- "<think>\n\n</think>\n\n" if skip_thought else "" -}}
{%- endif -%}
"""
"""Qwen-style turns with hermes tool calls. Thinking stays in the history; `enable_thinking=False` puts the
same empty thinking block before every assistant turn, earlier ones included."""
