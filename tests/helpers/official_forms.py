"""Jinja templates of the forms that docs/chat.md describes, written as the official ones are: for tests."""

SYSTEM = r"""{%- set asked = messages[0].content if messages[0].role == 'system' else '' %}
{{- '<role>SYSTEM</role>' }}
{%- if asked %}{{- asked + '\n' }}{%- endif %}
{%- if tools %}
    {{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
    {{- '\n</tools>\n\n' + call_form + '\n' }}
{%- endif %}
{%- if 'detailed thinking on' not in asked and 'detailed thinking off' not in asked %}
    {{- 'detailed thinking ' + thinking_option }}
{%- endif %}
{{- '<|role_end|>' }}
"""  # noqa: E501  a sentence of the template

TURNS = r"""{%- set ns = namespace(last_query=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = messages | length - 1 - loop.index0 %}
    {%- if ns.searching and message.role == 'user' %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' %}
        {{- '<role>HUMAN</role>' + content + '<|role_end|>' }}
    {%- elif message.role == 'system' and not loop.first %}
        {{- '<role>SYSTEM</role>' + content + '<|role_end|>' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}
        ANSWER
        {%- for tool_call in message.tool_calls or [] %}
            {%- if not loop.first or content %}{{- '\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            CALL
        {%- endfor %}
        {{- '<|role_end|>' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<role>OBSERVATION</role>' }}{%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|role_end|>' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}OPENING{%- endif %}
"""

JSON_CALL = r"""{{- '<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}"""
XML_CALL = r"""{{- '<tool_call>' + tool_call.name }}
            {%- for key, value in tool_call.arguments.items() %}
                {{- '<arg_key>' + key + '</arg_key>\n<arg_value>' }}
                {{- value if value is string else value | tojson(ensure_ascii=False) }}
                {{- '</arg_value>' }}
                {%- if loop.last %}{{- '\n' }}{%- endif %}
            {%- endfor %}
            {{- '</tool_call>' }}"""

STRIPPED = r"""{{- '<role>ASSISTANT</role>' }}
        {%- if reasoning and loop.index0 > ns.last_query %}{{- '<think>' + reasoning + '</think>' }}{%- endif %}
        {{- content }}"""
KEPT = r"""{{- '<role>ASSISTANT</role>\n<think>' + reasoning + '</think>' + content }}"""

# Off unless asked; the reasoning of earlier turns is taken out; calls are JSON.
LING_2_0 = (
    "{%- set thinking_option = 'on' if enable_thinking is defined and enable_thinking else 'off' %}"
    "{%- set call_form = 'Return a JSON object with name and arguments within <tool_call></tool_call> tags.' %}"
    + SYSTEM
    + TURNS.replace("ANSWER", STRIPPED).replace("CALL", JSON_CALL).replace("OPENING", "{{- '<role>ASSISTANT</role>' }}")
)
# The same for a model that always thinks: on unless it is turned off, and it opens the reasoning itself.
RING_1T = LING_2_0.replace(
    "'on' if enable_thinking is defined and enable_thinking else 'off'",
    "'off' if enable_thinking is defined and not enable_thinking else 'on'",
)
# On unless it is turned off; the prompt opens the reasoning, or closes an empty one; history only grows; XML calls.
LING_2_6 = (
    "{%- set thinks = enable_thinking if enable_thinking is defined else true %}"
    "{%- set thinking_option = 'on' if thinks else 'off' %}"
    "{%- set call_form = 'Write <tool_call>name<arg_key>key</arg_key>…</tool_call>.' %}"
    + SYSTEM
    + TURNS.replace("ANSWER", KEPT)
    .replace("CALL", XML_CALL)
    .replace("OPENING", r"{{- '<role>ASSISTANT</role>\n<think>' + ('' if thinks else '</think>') }}")
)
FORMS = {"2.0": LING_2_0, "Ring-1T": RING_1T, "2.6": LING_2_6}
