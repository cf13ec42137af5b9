--- What a command reads: a body, gathered until its input ends. At a terminal there is nobody else to show what is typed, so this says what
-- to echo, and takes Ctrl-D for the end and Ctrl-C for second thoughts. Bytes in, text out; it reads and writes nothing itself.
-- @module korv.input

local input = {}

local LINE_BYTES = 4096  -- of a line, that can be taken back; what was typed before stays
local PIECE_BYTES = 1024 -- what comes in smaller ones than this is joined: each takes some memory of its own

local Input = {}
Input.__index = Input

--- Begins to gather.
-- @tparam int most bytes that it may become
-- @tparam boolean typed whether a person types it at a terminal
-- @treturn Input
function input.new(most, typed)
  return setmetatable({ room = most, pieces = {}, piece = "", line = "", typed = typed, echo = {} }, Input)
end

local function gather(self, text)
  self.piece = self.piece .. text
  if #self.piece < PIECE_BYTES then return end
  self.pieces[#self.pieces + 1] = self.piece
  self.piece = ""
end

local function type_text(self, text)
  self.line = self.line .. text
  self.echo[#self.echo + 1] = text
  if #self.line <= LINE_BYTES then return end
  gather(self, self.line)
  self.line = ""
end

local controls = {} -- what some keys do; a result is what `feed` returns

controls["\3"] = function() return "interrupted" end -- Ctrl-C

controls["\4"] = function() return "ended" end -- Ctrl-D

controls["\r"] = function(self)
  gather(self, self.line .. "\n")
  self.line = ""
  self.echo[#self.echo + 1] = "\n"
end
controls["\n"] = controls["\r"]

controls["\127"] = function(self) -- Backspace
  local last = utf8.len(self.line) and utf8.offset(self.line, -1)
  if self.line == "" then return end
  self.line = self.line:sub(1, (last or #self.line) - 1)
  self.echo[#self.echo + 1] = "\b \b"
end
controls["\b"] = controls["\127"]

controls["\t"] = function(self) type_text(self, " ") end

local function type_in(self, bytes)
  for text, control in bytes:gmatch "(%C*)(%c?)" do
    type_text(self, text)
    local over = controls[control] and controls[control](self)
    if over then return over end
  end
end

--- Takes what came.
-- @tparam ?string bytes nil: the input has ended
-- @treturn ?string nil: go on; `"ended"`, `"interrupted"` or `"too long"`
function Input:feed(bytes)
  if not bytes then return "ended" end
  self.room = self.room - #bytes
  if self.room < 0 then return "too long" end
  if self.typed then return type_in(self, bytes) end
  gather(self, bytes)
end

--- Takes what is to be echoed since the last call.
-- @treturn string with lines that end in a newline
function Input:take_echo()
  local text = table.concat(self.echo)
  self.echo = {}
  return text
end

--- What was gathered.
-- @treturn string
function Input:text() return table.concat(self.pieces) .. self.piece .. self.line end

return input
