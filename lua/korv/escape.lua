--- Text that others wrote, made safe to show: nothing in it begins a line of its own, steers a terminal or turns the order of what is shown
-- around. Knows nothing of where it is shown.
-- @module korv.escape

local encode = require "korv.core".json.encode

local escape = {}

local NAMED = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local function bytes_escaped(bytes)
  return NAMED[bytes] or bytes:gsub(".", function(byte) return ("\\x%02x"):format(byte:byte()) end)
end

local function character_escaped(character) return ("\\u%04x"):format(utf8.codepoint(character)) end

-- Apart from ASCII's control characters: those of U+0080 to U+009F, line separators and changes of direction.
local function steering_escaped(text, escaped)
  if not text:find "[\xC2\xD8\xE2]" then return text end
  return (text:gsub("\xC2[\x80-\x9F]", escaped):gsub("\xD8\x9C", escaped):gsub("\xE2\x80[\x8E\x8F\xA8-\xAE]", escaped)
    :gsub("\xE2\x81[\xA6-\xA9]", escaped))
end

--- Makes UTF-8 of any text.
-- @tparam string text
-- @treturn string where it was none, its bytes that are not ASCII are written as `\xff`
function escape.broken(text)
  return utf8.len(text) and text or (text:gsub("[\x80-\xFF]", bytes_escaped))
end

--- The beginning of a text, on the boundary of a character; how long it was is told where it is cut.
-- @tparam string text
-- @tparam int most bytes
-- @treturn string
function escape.cut(text, most)
  if #text <= most then return text end
  local head = text:sub(1, utf8.offset(text, 0, most + 1) - 1)
  return ("%s… (%d bytes)"):format(head, #text)
end

--- Makes one line of any text.
-- @tparam string text
-- @treturn string UTF-8 without a newline or a control character
function escape.line(text)
  text = text:gsub("%c", bytes_escaped)
  return escape.broken((steering_escaped(text, bytes_escaped)))
end

--- Escapes what steers a terminal in JSON, whose meaning stays the same.
-- @tparam string text JSON; newlines between its tokens stay
-- @treturn string
function escape.json(text)
  text = steering_escaped(text, character_escaped)
  return (text:gsub("\127", "\\u007f"))
end

--- Makes a JSON string of any text; what is no UTF-8 is in it as in a line.
-- @tparam string text
-- @treturn string
function escape.quote(text) return escape.json(encode(escape.broken(text))) end

return escape
