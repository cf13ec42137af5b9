--- A line editor: what a person types comes in as bytes, and what a terminal is to show goes out as text. The line takes one row of the
-- terminal, and scrolls sideways where it is longer. It has the usual keys of emacs and of shells, history, and pastes in brackets.
-- A terminal that can do nothing (`dumb`) gets an echo, and the whole line anew where more than its end has changed.
--
-- It does no I/O and waits for nothing: a state machine. Knows nothing of what the line means; who completes it is asked by an event.
-- @module korv.lineedit

local keystrokes = require "korv.keystrokes"
local width = require "korv.width"

local lineedit = {}

local Editor = {}
Editor.__index = Editor

local HISTORY, HISTORY_BYTES = 200, 262144 -- lines that are remembered, and what they may take
local LISTED = 100                         -- candidates that are shown at once
local KEYS_AT_ONCE = 64                    -- a key may have to look at the whole line
local MARKS = 32                           -- that are taken for one with the character before them
local SOUGHT_BYTES = 200                   -- of what is searched for in the history

local BELL, NEWLINE = "\a", "\r\n"

-- Characters ----------------------------------------------------------------------------------------------------------------------------

-- What steers a terminal or turns the order of text around, and a line's end.
local STEERING = { [0x61C] = true, [0x200E] = true, [0x200F] = true, [0x2028] = true, [0x2029] = true }
for code = 0x202A, 0x202E do STEERING[code] = true end
for code = 0x2066, 0x2069 do STEERING[code] = true end
for code = 0x7F, 0x9F do STEERING[code] = true end

-- A character as it is shown, and its columns.
local function glyph(code)
  if code == 10 then return "↵", 1 end
  if STEERING[code] then return "\u{FFFD}", 1 end
  return utf8.char(code), width(code)
end

--- The columns of a text without control characters.
-- @tparam string text UTF-8
-- @treturn int
function lineedit.columns(text)
  if not text:find "[\x80-\xFF]" then return #text end
  local columns = 0
  for _, code in utf8.codes(text) do columns = columns + width(code) end
  return columns
end

local function code_at(text, at) return utf8.codepoint(text, at) end
local function after(text, at) return utf8.offset(text, 2, at) end
local function before(text, at) return utf8.offset(text, -1, at) end
local function is_mark(text, at) return at <= #text and code_at(text, at) >= 0x300 and width(code_at(text, at)) == 0 end

-- Places in the line: the cursor stands before the byte `at`, never between a character and what combines with it -----------------------

local function one_left(text, at)
  if at == 1 then return at end
  for _ = 0, MARKS do
    at = before(text, at)
    if at == 1 or not is_mark(text, at) then break end
  end
  return at
end

local function one_right(text, at)
  if at > #text then return at end
  for _ = 0, MARKS do
    at = after(text, at)
    if not is_mark(text, at) then break end
  end
  return at
end

-- The characters of a word, and of what is between two; a word is made of bytes of one kind.
local WORD, ARGUMENT = { is = "[%w_\x80-\xFF]", is_not = "[^%w_\x80-\xFF]" }, { is = "[^\0\1- ]", is_not = "[\0\1- ]" }

-- The end of a word to the right, the beginning of one to the left.
local function word_right(text, at, kind)
  local first = text:find(kind.is, at)
  return first and text:find(kind.is_not, first) or #text + 1
end

local function word_left(text, at, kind)
  return at - word_right(text:sub(1, at - 1):reverse(), 1, kind) + 1
end

-- What is shown ------------------------------------------------------------------------------------------------------------------------

-- The first character that can be shown so that all from there to the cursor fits.
local function first_shown(text, at, columns)
  local from = at
  while from > 1 do
    local left = before(text, from)
    local _, wide = glyph(code_at(text, left))
    if wide > columns then break end
    columns, from = columns - wide, left
  end
  return from
end

-- The glyphs from a place to another, as far as they fit; the columns that they take, and where they end.
local function shown(text, from, to, columns)
  local parts, used = {}, 0
  while from < to do
    local picture, wide = glyph(code_at(text, from))
    if used + wide > columns then break end
    parts[#parts + 1], used, from = picture, used + wide, after(text, from)
  end
  return table.concat(parts), used, from
end

-- The columns for the line itself: the prompt, a mark at either end and the cursor behind the line have theirs. A window that is too narrow
-- for the prompt has none.
local function room(self)
  local prompt = lineedit.columns(self.shown_prompt)
  if self.columns - prompt < 12 then return "", math.max(self.columns - 3, 1) end
  return self.shown_prompt, self.columns - prompt - 3
end

local function draw(self)
  local text, at = self.text, self.at
  local prompt, columns = room(self)
  if self.first > at then self.first = first_shown(text, at, columns // 4) end
  local left, used, reached = shown(text, self.first, at, columns)
  if reached < at then
    self.first = first_shown(text, at, columns - columns // 4)
    left, used = shown(text, self.first, at, columns)
  end
  local right, _, last = shown(text, at, #text + 1, columns - used)
  local from_left, to_right = self.first > 1 and "<" or "", last <= #text and ">" or ""
  local column = lineedit.columns(prompt) + #from_left + used
  self.free, self.is_cut = columns - used, #prompt < #self.shown_prompt or #from_left + #to_right > 0
  return ("\r%s%s%s%s%s\27[K\r%s"):format(prompt, from_left, left, right, to_right, column > 0 and ("\27[%dC"):format(column) or "")
end

-- All of it, for what stays on the screen.
local function whole(text)
  local parts = {}
  for _, code in utf8.codes(text) do parts[#parts + 1] = code == 10 and NEWLINE or (glyph(code)) end
  return table.concat(parts)
end

-- What brings the terminal from what it shows to the line as it is.
local function show(self, was)
  if self.text == was.text and self.at == was.at and self.shown_prompt == was.prompt and not self.stale then return "" end
  local stale = self.stale
  self.stale = nil
  local is_longer = self.at > #self.text and was.at > #was.text and self.shown_prompt == was.prompt and not stale
    and #self.text > #was.text and self.text:sub(1, #was.text) == was.text
  if self.dumb then
    if is_longer then return whole(self.text:sub(was.at)) end
    return NEWLINE .. self.shown_prompt .. whole(self.text)
  end
  if is_longer and #self.text - #was.text <= self.free then
    local tail, used = shown(self.text, was.at, self.at, self.free)
    self.free = self.free - used
    return tail
  end
  return draw(self)
end

-- Changes -------------------------------------------------------------------------------------------------------------------------------

local function ring(self) self.bell = true end

local function insert(self, text)
  if #self.text + #text > self.most then
    self.overflown = true
    return ring(self)
  end
  self.text = self.text:sub(1, self.at - 1) .. text .. self.text:sub(self.at)
  self.at = self.at + #text
end

local function set(self, text)
  self.text, self.at, self.first, self.overflown = text, #text + 1, 1, false
end

-- Removes from a place up to another, and keeps it for Ctrl-Y where it is more than a character.
local function remove(self, from, to, keep)
  if from == to then return ring(self) end
  if keep then self.killed = self.text:sub(from, to - 1) end
  self.text = self.text:sub(1, from - 1) .. self.text:sub(to)
  self.at = from
end

local function exchange(self)
  local text, at = self.text, self.at
  if at > #text then at = one_left(text, at) end
  if at == 1 then return ring(self) end
  local left, right = one_left(text, at), one_right(text, at)
  self.text = text:sub(1, left - 1) .. text:sub(at, right - 1) .. text:sub(left, at - 1) .. text:sub(right)
  self.at, self.first = right, 1
end

-- History: `place` counts from the newest line; at 0 is the line that was being written ----------------------------------------------

local function recall(self, place)
  local line = place == 0 and self.draft or self.history[#self.history + 1 - place]
  if not line then return ring(self) end
  if self.place == 0 then self.draft = self.text end
  self.place = place
  set(self, line)
end

--- Adds a line to the history.
-- @tparam string line
function Editor:remember(line)
  local history = self.history
  if line == "" or line == history[#history] then return end
  history[#history + 1] = line
  history.bytes = history.bytes + #line
  while #history > HISTORY or history.bytes > HISTORY_BYTES do history.bytes = history.bytes - #table.remove(history, 1) end
end

-- Searching back through it, which lasts until a key that is none of the search's ------------------------------------------------------

local function search(self, sought, from)
  self.has_searched = true
  for place = from, #self.history do
    local line = self.history[#self.history + 1 - place]
    local found = line:find(sought, 1, true)
    if found then
      recall(self, place)
      self.at = found
      return true
    end
  end
  ring(self)
end

local function set_search(self, sought)
  self.sought = sought
  self.shown_prompt = sought and ("(history: %s) "):format(whole(sought)) or self.prompt
end

local SEARCHING = {
  search = function(self) search(self, self.sought, self.place + 1) end,
  backspace = function(self) set_search(self, self.sought:sub(1, one_left(self.sought, #self.sought + 1) - 1)) end,
  abort = function(self)
    set_search(self, nil)
    if self.place > 0 then recall(self, 0) end
  end,
}

local function search_further(self, text)
  if #self.sought + #text > SOUGHT_BYTES or not search(self, self.sought .. text, math.max(self.place, 1)) then return ring(self) end
  set_search(self, self.sought .. text)
end

-- Keys: each may return the name of an event --------------------------------------------------------------------------------------------

local KEYS = {
  home = function(self) self.at = 1 end,
  left = function(self) self.at = one_left(self.text, self.at) end,
  right = function(self) self.at = one_right(self.text, self.at) end,
  ["end"] = function(self) self.at = #self.text + 1 end,
  ["word left"] = function(self) self.at = word_left(self.text, self.at, WORD) end,
  ["word right"] = function(self) self.at = word_right(self.text, self.at, WORD) end,
  backspace = function(self) remove(self, one_left(self.text, self.at), self.at) end,
  delete = function(self) remove(self, self.at, one_right(self.text, self.at)) end,
  ["kill left"] = function(self) remove(self, 1, self.at, true) end,
  ["kill right"] = function(self) remove(self, self.at, #self.text + 1, true) end,
  ["kill argument"] = function(self) remove(self, word_left(self.text, self.at, ARGUMENT), self.at, true) end,
  ["kill word left"] = function(self) remove(self, word_left(self.text, self.at, WORD), self.at, true) end,
  ["kill word right"] = function(self) remove(self, self.at, word_right(self.text, self.at, WORD), true) end,
  yank = function(self) insert(self, self.killed) end,
  exchange = exchange,
  previous = function(self) recall(self, self.place + 1) end,
  next = function(self) recall(self, self.place - 1) end,
  search = function(self) set_search(self, "") end,
  clear = function(self) self.stale, self.clear = true, true end,
  complete = function() return "complete" end,
  enter = function(self) return self.overflown and "too_long" or "line" end,
  interrupt = function() return "interrupt" end,
}

function KEYS.leave(self)
  if self.text == "" then return "leave" end
  KEYS.delete(self)
end

local function press(self, key)
  local action = KEYS[key]
  if self.sought then
    action = SEARCHING[key] or action
    if not SEARCHING[key] then set_search(self, nil) end
  end
  return action and action(self)
end

-- Takes what is at `at`; where it ends (nil: it is not whole) and, if any, an event.
local function take(self, bytes, at)
  local behind, key, text, is_lossy = self.keys:next(bytes, at)
  local event = key and press(self, key)
  if key and self.text == "" then self.overflown = false end
  if is_lossy then ring(self) end
  if text and text ~= "" then (self.sought and search_further or insert)(self, text) end
  if self.dumb or event == "interrupt" then self.at = #self.text + 1 end
  return behind, event
end

-- The end of a line, which stays on the screen as a whole; what comes next begins on a row of its own.
local function leave_line(self, event)
  if event == "interrupt" then return "^C" .. NEWLINE end
  if self.dumb or not (self.is_cut or self.text:find("\n", 1, true)) then return NEWLINE end
  return "\r\27[K" .. self.prompt .. whole(self.text) .. NEWLINE
end

local function reset(self)
  set(self, "")
  self.place, self.draft = 0, ""
end

-- Takes keys until there is an event, or enough of them; where the next begins. A search looks at all that is remembered, which is enough.
local function take_some(self, bytes)
  local at = 1
  self.has_searched = false
  for _ = 1, KEYS_AT_ONCE do
    if at > #bytes or self.has_searched then break end
    local behind, event = take(self, bytes, at)
    if not behind then
      self.tail = bytes:sub(at)
      return #bytes + 1
    end
    at = behind
    if event then return at, event end
  end
  return at
end

-- What the terminal is sent after some keys.
local function update(self, was)
  local out = (self.clear and not self.dumb and "\27[H\27[2J" or "") .. show(self, was) .. (self.bell and BELL or "")
  self.clear, self.bell = nil, nil
  return out
end

local function snapshot(self) return { text = self.text, at = self.at, prompt = self.shown_prompt } end

--- Takes bytes that were typed: some of them at least, up to where something has happened:
--
-- - `line` a line was ended, whose text is the fourth value
-- - `too_long` a line was ended that has lost something at the limit
-- - `interrupt` Ctrl-C was typed; the line is given up
-- - `leave` Ctrl-D was typed on an empty line
-- - `complete` Tab was typed, behind the text that is the fourth value: `Editor:offer` is the answer, if any
--
-- After each but the last the terminal is at the beginning of a row, and `Editor:begin` begins the next line.
-- @tparam string bytes
-- @treturn string what the terminal is to be sent
-- @treturn string bytes that were not taken yet
-- @treturn ?string event
-- @treturn ?string text
function Editor:feed(bytes)
  local was = snapshot(self)
  bytes, self.tail = self.tail .. bytes, ""
  local at, event = take_some(self, bytes)
  local rest = bytes:sub(at)
  if not event then return update(self, was), rest end
  if event == "complete" then return update(self, was), rest, event, self.text:sub(1, self.at - 1) end
  set_search(self, nil)
  local out, text = update(self, was) .. leave_line(self, event), self.text
  reset(self)
  self.is_open = false
  return out, rest, event, text
end

--- Begins a line.
-- @tparam string prompt
-- @treturn string what the terminal is to be sent
function Editor:begin(prompt)
  reset(self)
  self.prompt, self.shown_prompt, self.is_open = prompt, prompt, true
  return self.dumb and prompt or draw(self)
end

--- The window has another width.
-- @tparam int columns
-- @treturn string what the terminal is to be sent, if a line is being written
function Editor:resize(columns)
  if columns == self.columns then return "" end
  self.columns, self.first = columns, 1
  return (self.dumb or not self.is_open) and "" or draw(self)
end

-- Completion ----------------------------------------------------------------------------------------------------------------------------

local function common_beginning(candidates)
  local text = candidates[1].text
  for _, candidate in ipairs(candidates) do
    while candidate.text:sub(1, #text) ~= text do text = text:sub(1, one_left(text, #text + 1) - 1) end
  end
  return text
end

-- As many columns as the window has room for.
local function listed(labels, columns)
  local widest = 0
  for _, label in ipairs(labels) do widest = math.max(widest, lineedit.columns(label)) end
  local across = math.max(1, (columns - 1) // (widest + 2))
  local down, rows = -(-#labels // across), {}
  for row = 1, down do
    local cells = {}
    for i = row, #labels, down do cells[#cells + 1] = labels[i] .. (" "):rep(widest + 2 - lineedit.columns(labels[i])) end
    rows[row] = table.concat(cells):gsub(" +$", "") .. NEWLINE
  end
  return table.concat(rows)
end

--- Completes what is before the cursor: as far as all candidates agree; where that is no further, they are listed.
-- @tparam int from where the text begins that they stand for
-- @tparam {table,...} candidates each with its `text` and the `label` that is listed: UTF-8 without control characters
-- @treturn string what the terminal is to be sent
function Editor:offer(from, candidates)
  if #candidates == 0 then return BELL end
  local was = snapshot(self)
  local typed, text = self.text:sub(from, self.at - 1), common_beginning(candidates)
  if #text > #typed or #candidates == 1 then
    self.text = self.text:sub(1, from - 1) .. self.text:sub(self.at)
    self.at, self.first = from, 1
    insert(self, text)
    return show(self, was)
  end
  local labels = {}
  for i = 1, math.min(#candidates, LISTED) do labels[i] = candidates[i].label end
  local more = #candidates > LISTED and ("… and %d more%s"):format(#candidates - LISTED, NEWLINE) or ""
  return NEWLINE .. listed(labels, self.columns) .. more .. (self.dumb and self.prompt .. whole(self.text) or draw(self))
end

--- An editor without a line.
-- @tparam table options `columns` of the window; `dumb`: the terminal can be sent no control sequences; `most`: bytes of a line
-- @treturn Editor
function lineedit.new(options)
  return setmetatable({
    columns = options.columns, dumb = options.dumb, most = options.most, keys = keystrokes.new(), tail = "", killed = "", free = 0,
    prompt = "", shown_prompt = "", history = { bytes = 0 }, text = "", at = 1, first = 1, place = 0, draft = "",
  }, Editor)
end

return lineedit
