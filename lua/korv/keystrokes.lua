--- Keys out of the bytes that a terminal sends: control characters, escape sequences, pastes in brackets, and text, which is UTF-8. Bytes
-- may come in any pieces. Knows nothing of what a key does.
-- @module korv.keystrokes

local keystrokes = {}

local Decoder = {}
Decoder.__index = Decoder

local SEQUENCE_BYTES = 32 -- a longer escape sequence is none
local PASTE_END = "\27[201~"
local CONTROL = "[\0\1-\31\127]"

local CONTROLS = {
  [1] = "home", [2] = "left", [3] = "interrupt", [4] = "leave", [5] = "end", [6] = "right", [7] = "abort", [8] = "backspace",
  [9] = "complete", [10] = "enter", [11] = "kill right", [12] = "clear", [13] = "enter", [14] = "next", [16] = "previous",
  [18] = "search", [20] = "exchange", [21] = "kill left", [23] = "kill argument", [25] = "yank", [127] = "backspace",
}

-- Without the ESC; ESC O is as ESC [.
local SEQUENCES = {
  ["[A"] = "previous", ["[B"] = "next", ["[C"] = "right", ["[D"] = "left", ["[H"] = "home", ["[F"] = "end",
  ["[1~"] = "home", ["[7~"] = "home", ["[4~"] = "end", ["[8~"] = "end", ["[3~"] = "delete", ["[200~"] = "paste",
  ["[1;5C"] = "word right", ["[1;3C"] = "word right", ["[1;5D"] = "word left", ["[1;3D"] = "word left",
  b = "word left", f = "word right", d = "kill word right", ["\127"] = "kill word left", ["\8"] = "kill word left",
}

-- How many bytes at the end begin a character and are not all of it.
local function unfinished(bytes)
  for back = 1, math.min(3, #bytes) do
    local byte = bytes:byte(-back)
    if byte < 0x80 then return 0 end
    if byte >= 0xC2 then return back < (byte >= 0xF0 and 4 or byte >= 0xE0 and 3 or 2) and back or 0 end
  end
  return 0
end

-- Without what is no UTF-8.
local function valid(bytes)
  local _, bad = utf8.len(bytes)
  if not bad then return bytes end
  local parts, from = {}, 1
  while bad do
    parts[#parts + 1] = bytes:sub(from, bad - 1)
    from = bad + 1
    _, bad = utf8.len(bytes, from)
  end
  parts[#parts + 1] = bytes:sub(from)
  return table.concat(parts)
end

-- The text from `at` to `last`, and where it ends: before a character at the end of the bytes that is not whole.
local function text_to(bytes, at, last)
  if last == #bytes then last = last - unfinished(bytes:sub(at)) end
  return bytes:sub(at, last), last + 1
end

-- The key of the escape sequence at `at` (nil: none that is known), and its last byte (nil: it is not whole).
local function sequence(bytes, at)
  local kind = bytes:sub(at + 1, at + 1)
  if kind == "" then return nil, nil end
  if kind == "\27" then return nil, at end
  if kind ~= "[" and kind ~= "O" then return SEQUENCES[kind], at + 1 end
  local last = bytes:find("[^0-?]", at + 2)
  if not last then return nil, #bytes - at > SEQUENCE_BYTES and #bytes or nil end
  if bytes:byte(last) < 32 then return nil, last - 1 end
  return SEQUENCES["[" .. bytes:sub(at + 2, last)], last
end

-- Within brackets all is text, but for Ctrl-C; a tab is a space.
local function take_pasted(self, bytes, at)
  local stop = bytes:find("[\3\27]", at)
  if stop ~= at then
    local text, behind = text_to(bytes, at, (stop or #bytes + 1) - 1)
    if text == "" then return nil end
    return behind, nil, (text:gsub("\r\n?", "\n"):gsub("\t", " "):gsub("[\0\1-\9\11-\31\127]", ""))
  end
  local ahead = bytes:sub(at, at + #PASTE_END - 1)
  if ahead ~= PASTE_END and PASTE_END:sub(1, #ahead) == ahead then return nil end
  self.pasting = ahead:byte() ~= 3 and ahead ~= PASTE_END
  if ahead:byte() == 3 then return at + 1, "interrupt" end
  return at + (self.pasting and 1 or #PASTE_END)
end

-- The line feed of a CR LF is none of its own.
local function control(self, byte, at)
  local is_second = byte == 10 and self.after_return
  self.after_return = byte == 13
  return at + 1, not is_second and CONTROLS[byte] or nil
end

local function take(self, bytes, at)
  if self.pasting then return take_pasted(self, bytes, at) end
  local byte = bytes:byte(at)
  if byte == 27 then
    local key, last = sequence(bytes, at)
    self.pasting = key == "paste"
    return last and last + 1, not self.pasting and key or nil
  end
  if byte < 32 or byte == 127 then return control(self, byte, at) end
  self.after_return = false
  local text, behind = text_to(bytes, at, (bytes:find(CONTROL, at) or #bytes + 1) - 1)
  if text == "" then return nil end
  return behind, nil, text
end

--- Reads what is at a place.
-- @tparam string bytes
-- @tparam int at
-- @treturn ?int where the next begins; nil: what is there is not whole yet, and is to come again with more behind it
-- @treturn ?string the name of a key
-- @treturn ?string or text: valid UTF-8, in which a line feed is the only control character
-- @treturn ?boolean whether what was no UTF-8 has been left out
function Decoder:next(bytes, at)
  local behind, key, text = take(self, bytes, at)
  local clean = text and valid(text)
  return behind, key, clean, clean ~= text
end

--- A decoder, which remembers whether a paste is under way.
-- @treturn Decoder
function keystrokes.new() return setmetatable({ pasting = false, after_return = false }, Decoder) end

return keystrokes
