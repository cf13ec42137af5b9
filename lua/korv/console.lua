--- The console: what somebody gets who opens a shell at a terminal. It reads commands through the line editor, asks one request at a time
-- as a message, and shows what comes back for a person to read. All of it is driven by what comes in: it waits nowhere. Knows nothing of
-- keys and rows, which are the editor's, and nothing of sockets.
-- @module korv.console

local core = require "korv.core"
local escape = require "korv.escape"
local help = require "korv.help"
local lineedit = require "korv.lineedit"
local log = require "korv.log"
local pretty = require "korv.pretty"
local task = require "korv.task"
local uv = require "luv"
local version = require "korv.version"

local console = {}

local PROMPT, CONTINUED = "korv> ", "  ... "
local LINE_BYTES = 65536   -- of a command, over however many lines
local AHEAD_BYTES = 65536  -- typed ahead: from so many on input is not read
local SLICE_BYTES = 4096   -- of what was typed that are worked off before others get their turn
local SHOWN_BYTES = 65536  -- of a body: of a longer one only the beginning is shown
local STOPPED = 5          -- the exit status where the server ends it: as for a 503

local FAILED = 1           -- where it fails itself

local VERBS = { "GET", "STORE", "UPDATE", "DELETE" }
local IS_VERB, NEEDS_BODY = {}, { STORE = true, UPDATE = true }
for _, verb in ipairs(VERBS) do IS_VERB[verb] = true end

local DUMB = { [""] = true, dumb = true, unknown = true }
local GREEN, RED, PLAIN = "\27[32m", "\27[31m", "\27[0m"
local PASTE_ON, PASTE_OFF = "\27[?2004h", "\27[?2004l"

-- Output --------------------------------------------------------------------------------------------------------------------------------

local function write(self, text)
  if text == "" or self.over then return end
  if self.caller:write(text) == false then self.clogged = true end
end

-- Lines, whose text is safe.
local function say(self, text) write(self, text:gsub("\n", "\r\n") .. "\r\n") end

local function prompt(self)
  if not self.over then write(self, self.editor:begin(self.partial and CONTINUED or PROMPT)) end
end

local function leave(self, status)
  if not self.dumb then write(self, PASTE_OFF) end
  self.over = true
  self.caller:finish(status)
end

-- What a peer may call --------------------------------------------------------------------------------------------------------------

local INTRODUCTION = [[
VERB RESOURCE [BODY]   calls an endpoint, like GET /hello or STORE /users/ann {"age": 7}
help [RESOURCE]        lists the endpoints whose resource begins so
exit, quit, Ctrl-D     leave
Tab completes, Ctrl-C cancels, Ctrl-R searches what was typed before. A body is JSON, and may take several lines.]]

local function show_help(self, about)
  if about == "" then say(self, INTRODUCTION .. "\n") end
  local list = {}
  for _, endpoint in ipairs(help.endpoints(self.server, self.peer)) do
    if endpoint.resource:sub(1, #about) == about then list[#list + 1] = endpoint end
  end
  say(self, #list > 0 and help.columns(list):gsub("\n$", "") or ("no endpoint's resource begins with '%s'"):format(escape.line(about)))
end

local function counted(n, what) return ("%d %s%s"):format(n, what, n == 1 and "" or "s") end

local function greet(self)
  local peer, port = self.peer, self.server.port or self.server.options.port
  local name = peer.name and peer.name ~= "" and escape.line(peer.name) .. ", " or ""
  local roles = peer.roles and #peer.roles > 0 and ", roles: " .. escape.line(table.concat(peer.roles, " ")) or ""
  say(self, ("korv %s on %s%s"):format(version, escape.line(uv.os_gethostname()), port and port > 0 and ", port " .. port or ""))
  say(self, ("You are %s%s%s"):format(name, escape.line(peer.fingerprint), roles))
  say(self, ("%s for you: help lists them, Tab completes, exit leaves"):format(counted(#help.endpoints(self.server, peer), "endpoint")))
end

-- Answers -------------------------------------------------------------------------------------------------------------------------------

-- 999.95 would be rounded to 1000.0 of them.
local function duration(nanoseconds)
  local ms = nanoseconds / 1e6
  return ms < 999.95 and ("%.1f ms"):format(ms) or ("%.2f s"):format(ms / 1000)
end

local function shown(self, body, one_line)
  if #body > SHOWN_BYTES then return escape.json(escape.cut(body, SHOWN_BYTES)) end
  if one_line and not self.colors then return escape.json(body) end
  local value = core.json.decode(body)
  return value ~= nil and pretty(value, { colors = self.colors, one_line = one_line }) or escape.json(body)
end

local function verdict(self, running, code)
  local text = ("%d in %s"):format(code, duration(uv.hrtime() - running.began))
  if running.items > 0 then text = text .. ", " .. counted(running.items, "item") end
  if not self.colors then return text end
  return (code < 300 and GREEN or RED) .. text .. PLAIN
end

local function on_item(self, body)
  self.running.items = self.running.items + 1
  if not self.running.cancelled then say(self, shown(self, body, true)) end
end

local go_on

local function on_last(self, code, body)
  local running = self.running
  self.running = nil
  if body ~= "null" and not running.cancelled then say(self, shown(self, body)) end
  say(self, verdict(self, running, code))
  prompt(self)
  go_on(self)
end

local function cancel(self)
  if self.running.cancelled then return end
  self.running.cancelled, self.pending = true, ""
  write(self, "^C\r\n")
  self.caller:message('{"cancel":' .. self.running.id .. "}")
end

-- Commands ------------------------------------------------------------------------------------------------------------------------------

-- The answer may come within. The body is JSON that was decoded once: its text cannot break out of its place.
local function ask(self, verb, resource, body)
  self.asked = self.asked + 1
  self.running = { id = tostring(self.asked), began = uv.hrtime(), items = 0 }
  local text = ('{"id":%d,"verb":"%s","resource":%s,"stream":true%s}'):format(self.asked, verb, core.json.encode(resource),
    body and ',"body":' .. body or "")
  if self.caller:message(text) then return end
  self.running = nil
  return "too many requests are under way"
end

-- Of a body within quotes, as a shell wants it: what they hold. No JSON begins with one.
local function unquoted(body)
  local inner = body:match "^'(.*)$"
  return inner and inner:gsub("'%s*$", "") or body
end

-- Whether more lines can make JSON of it. A string does not go on in the next line.
local function is_unfinished(body, message)
  return body:find "^%s*[%[{]" and message:find "found the end of the text$" and not message:find("at the end of a string", 1, true)
end

-- Returns what is wrong; nil: it was asked, or is to go on in the next line.
local function request(self, verb, rest, line)
  local resource, body = rest:match "^(%S+)%s*(.*)$"
  if not resource then return ("%s of what? A resource follows, like %s /hello; help lists what there is"):format(verb, verb) end
  if resource:sub(1, 1) ~= "/" then return ("a resource begins with /: %s /%s"):format(verb, escape.line(resource)) end
  body = unquoted(body)
  if body == "" then
    if not NEEDS_BODY[verb] then return ask(self, verb, resource) end
    return ('%s needs a body, which is JSON, behind the resource: %s %s {"age": 7}'):format(verb, verb, escape.line(resource))
  end
  local value, message = core.json.decode(body)
  if value ~= nil then return ask(self, verb, resource, body) end
  if not is_unfinished(body, message) then return ("the body is not JSON: %s"):format(escape.line(message)) end
  self.partial = line
end

local COMMANDS = { help = show_help, exit = function(self) leave(self, 0) end }
COMMANDS.quit = COMMANDS.exit

-- Each pattern goes over the line once: it may be long.
local function run(self, line)
  line = line:match "^.*%S"
  if not line then return prompt(self) end
  local word, rest = line:match "^%s*(%S+)%s*(.*)$"
  local verb, command, asked, wrong = word:upper(), COMMANDS[word:lower()], self.asked, nil
  if IS_VERB[verb] then
    wrong = request(self, verb, rest, line)
  elseif command then
    command(self, rest)
  else
    wrong = ("unknown: %s. A command begins with GET, STORE, UPDATE or DELETE; help tells more"):format(escape.line(escape.cut(word, 40)))
  end
  if not self.partial then self.editor:remember(line) end
  if wrong then say(self, wrong) end
  if wrong or self.asked == asked then prompt(self) end -- what was asked is followed by one when it is answered
end

-- Completion ----------------------------------------------------------------------------------------------------------------------------

-- What a resource offers behind what was typed of it: the text as far as it is literal, and whether that is all. nil: it does not fit.
local function completed(resource, typed)
  local text, rest = "", typed
  for segment in resource:gmatch "/([^/]*)" do
    local given, behind = rest:match "^/([^/]*)(.*)$"
    local is_parameter = segment:find "^[:*]" ~= nil
    if is_parameter and (rest == "" or rest == "/") then return text .. "/", false end
    if not given and rest ~= "" or is_parameter and (behind == "" or segment:find "^%*") then return nil end
    local fits = not given or is_parameter or (behind == "" and segment:sub(1, #given) or segment) == given
    if not fits then return nil end
    text, rest = text .. "/" .. (is_parameter and given or segment), behind or ""
  end
  if rest == "" then return text, true end
end

local function resources_for(self, verb, typed)
  local list, seen = {}, {}
  for _, endpoint in ipairs(help.endpoints(self.server, self.peer)) do
    local label = endpoint.resource
    local text, is_all = completed(label, typed)
    if text and (not verb or verb == endpoint.verb) and not seen[label] and escape.line(label) == label then
      seen[label] = true
      list[#list + 1] = { text = text, label = label, is_all = is_all }
    end
  end
  if #list == 1 and list[1].is_all then list[1].text = list[1].text .. " " end
  return list
end

local WORDS = { "GET", "STORE", "UPDATE", "DELETE", "help", "exit", "quit" }

local function words_for(typed)
  local list = {}
  for _, word in ipairs(WORDS) do
    if word:sub(1, #typed):lower() == typed:lower() then list[#list + 1] = { text = word .. " ", label = word } end
  end
  return list
end

local function candidates(self, before)
  if self.partial then return 1, {} end
  local first = before:match "^%s*(%S*)$"
  if first then return #before - #first + 1, words_for(first) end
  local word, typed = before:match "^%s*(%S+)%s+(%S*)$"
  local verb = word and word:upper()
  if not (IS_VERB[verb] or verb == "HELP") then return 1, {} end
  return #before - #typed + 1, resources_for(self, IS_VERB[verb] and verb or nil, typed)
end

-- Input ---------------------------------------------------------------------------------------------------------------------------------

local EVENTS = {}

function EVENTS.too_long(self)
  self.partial = nil
  say(self, ("a command takes at most %d bytes: nothing was sent"):format(self.most))
  prompt(self)
end

function EVENTS.line(self, text)
  local line = self.partial and self.partial .. "\n" .. text or text
  self.partial = nil
  if #line > self.most then return EVENTS.too_long(self) end
  run(self, line)
end

function EVENTS.interrupt(self)
  self.partial = nil
  prompt(self)
end

function EVENTS.leave(self)
  if self.partial then return EVENTS.interrupt(self) end
  leave(self, 0)
end

function EVENTS.complete(self, before) write(self, self.editor:offer(candidates(self, before))) end

local function is_ready(self) return not (self.running or self.clogged or self.over) end

-- Input is read while not too much of it waits.
local function regulate(self)
  local reads = #self.pending <= AHEAD_BYTES
  if reads ~= self.reads then self.caller:read(reads) end
  self.reads = reads
end

-- Of what came while a request runs: what is behind the last Ctrl-C, which cancels it.
local function heed(self, bytes)
  local behind = bytes:match "^.*\3(.*)$"
  if behind then cancel(self) end
  return behind or bytes
end

-- Works off a slice of what was typed, up to the first thing that happens.
local function work_off(self)
  if not is_ready(self) then return end
  if self.pending == "" then return self.ended and leave(self, 0) end
  local out, rest, event, text = self.editor:feed(self.pending:sub(1, SLICE_BYTES))
  self.pending = rest .. self.pending:sub(SLICE_BYTES + 1)
  regulate(self)
  write(self, out)
  if event then EVENTS[event](self, text) end
  if self.running then self.pending = heed(self, self.pending) end
  go_on(self)
end

-- As a handler of the core's, what fails closes its channel.
local function advance(self)
  self.scheduled = false
  local ok, problem = xpcall(work_off, debug.traceback, self)
  if ok then return end
  log.error("a console failed: %s", problem)
  self.over = true
  self.caller:finish(FAILED)
end

-- The rest comes in another turn of the loop.
function go_on(self)
  if self.scheduled or not is_ready(self) or self.pending == "" and not self.ended then return end
  self.scheduled = true
  task.spawn(advance, self)
end

local function on_data(self, bytes)
  if self.over then return end
  if not bytes then
    self.ended = true
    return go_on(self)
  end
  if self.running then bytes = heed(self, bytes) end
  self.pending = self.pending .. bytes
  regulate(self)
  if not self.scheduled then advance(self) end
end

local function on_stopping(self)
  if self.over then return end
  write(self, "\r\n")
  say(self, "The server is stopping.")
  leave(self, STOPPED)
end

local function handlers(self)
  return {
    data = function(bytes) on_data(self, bytes) end,
    answer = function(id, code, body, more)
      if not self.running or self.running.id ~= id then return end
      if more then on_item(self, body) else on_last(self, code, body) end
    end,
    interrupted = function() on_data(self, "\3") end,
    resized = function(columns) write(self, self.editor:resize(columns)) end,
    drained = function()
      self.clogged = false
      go_on(self)
    end,
    stopping = function() on_stopping(self) end,
    closed = function() self.over = true end,
  }
end

--- Opens a console on a channel, and greets.
-- @param caller the core's, of that channel
-- @tparam table peer who is there
-- @tparam table terminal `name`, `columns`, `no_color`
-- @tparam Server server
-- @treturn table the handlers of what happens on the channel
function console.open(caller, peer, terminal, server)
  local dumb = DUMB[terminal.name] or false
  local most = math.min(LINE_BYTES, server.options.max_message_bytes or LINE_BYTES)
  local self = {
    caller = caller, peer = peer, server = server, dumb = dumb, colors = not dumb and not terminal.no_color, most = most,
    editor = lineedit.new { columns = terminal.columns, dumb = dumb, most = most }, pending = "", asked = 0,
  }
  if not dumb then write(self, PASTE_ON) end
  greet(self)
  prompt(self)
  regulate(self)
  return handlers(self)
end

return console
