--- `ssh HOST VERB RESOURCE [BODY]`: one request, made of a line as a person or a shell script writes it, and its answer as they read it:
-- bodies on stdout, what is not a success on stderr, and an exit status. Knows nothing of SSH beyond the core's caller.
-- @module korv.commandline

local escape = require "korv.escape"
local help = require "korv.help"
local input = require "korv.input"
local json = require "korv.core".json
local pretty = require "korv.pretty"

local commandline = {
  --- The exit status where a command was not understood.
  USAGE = 64,
}

local MESSAGE_BYTES = 16 << 20 -- as the core has it where the server's options say nothing
local PRETTY_BYTES = 1 << 16   -- longer bodies are printed as they are: nobody reads them, and all others would wait

local READS = { STORE = true, UPDATE = true } -- their input, where they have no body
local HELP = { help = true, ["--help"] = true, ["-h"] = true }

-- What was typed --------------------------------------------------------------------------------------------------------------------

-- nil: it is a verb.
local function unknown(word)
  if word == "" then return "nothing was asked for" end
  local problem, instead = help.odd_verb(word:upper())
  if not problem or instead then return problem end
  return ("there is no command %s here"):format(help.quoted(word))
end

-- ssh joins its arguments with blanks, so the rest of the line is the body as it stands. Quotes that a shell would have removed may be
-- around it; no JSON begins with one.
local function body_of(rest)
  if rest == "" then return nil end
  return rest:match "^'(.*)'$" or rest
end

local function parse_help(rest)
  local prefix = rest:match "^%S*"
  local problem = prefix ~= "" and help.odd_resource(prefix)
  if problem then return nil, problem end
  return { prefix = prefix }
end

-- The command's verb, resource and body (nil: none), or the prefix that help is wanted about; nil and a message where it is none.
-- Each pattern goes over the text once: a line may be long.
local function parse(command)
  local word, rest = (command:match "^.*%S" or ""):match "^%s*(%S*)%s*(.*)$"
  if HELP[word:lower()] then return parse_help(rest) end
  local verb, problem = word:upper(), unknown(word)
  if problem then return nil, problem end
  local resource, behind = rest:match "^(%S+)%s*(.*)$"
  if not resource then return nil, ("%s needs a resource: %s /hello"):format(verb, verb) end
  problem = help.odd_resource(resource)
  if problem then return nil, problem end
  return { verb = verb, resource = resource, body = body_of(behind) }
end

-- What is printed ------------------------------------------------------------------------------------------------------------------

local Command = {}
Command.__index = Command

-- At a terminal that ssh has set to raw, lines have to begin at its left edge by themselves.
local function print_text(self, text, to_stderr)
  return self.caller:write(self.terminal and text:gsub("\n", "\r\n") or text, to_stderr)
end

local function has_colors(terminal) return not terminal.no_color and terminal.name ~= "" and terminal.name ~= "dumb" end

local function for_people(self, body)
  local value = #body <= PRETTY_BYTES and json.decode(body)
  if value == nil or value == false then return escape.json(body) end
  return pretty(value, { colors = has_colors(self.terminal) })
end

local function print_body(self, body)
  print_text(self, self.terminal and for_people(self, body) or body)
  print_text(self, "\n")
end

local function finish(self, status)
  self.over = true
  self.caller:finish(status)
end

local function print_failure(self, code, body)
  print_text(self, ("%d %s\n"):format(code, self.terminal and escape.json(body) or body), true)
  finish(self, code // 100)
end

-- What the core answers a message that it refuses.
local function fail(self, code, message, detail)
  local rest = detail and ',"detail":' .. json.encode(escape.broken(detail)) or ""
  print_failure(self, code, ('{"message":%s%s}'):format(json.encode(message), rest))
end

local function complain(self, problem, status)
  print_text(self, problem, true)
  finish(self, status)
end

-- The request ------------------------------------------------------------------------------------------------------------------------

local function bad_body(self, problem)
  fail(self, 400, "Unable to process request", ("the body is not JSON: %s (text needs quotes of its own: '\"text\"')"):format(problem))
end

-- A message's text; nil where it cannot be one, and that was said. A body is spliced in as it was typed, once it is known to be JSON.
local function message_of(self, body)
  local resource, problem = json.encode(self.resource)
  if not resource then return fail(self, 400, "Unable to process request", "the resource: " .. problem) end
  local head = ('{"id":1,"verb":"%s","resource":%s,"stream":true'):format(self.verb, resource)
  if not body then return head .. "}" end
  local value
  value, problem = json.decode(body)
  if value == nil then return bad_body(self, problem) end
  return head .. ',"body":' .. body .. "}"
end

local function too_large(self)
  fail(self, 413, "Message too large", ("a message has at most %d bytes"):format(self.most))
end

local function ask(self, body)
  if body and #body > self.most then return too_large(self) end
  local message = message_of(self, body)
  if not message then return end
  if #message > self.most then return too_large(self) end
  self.asked = true
  self.caller:read(self.terminal ~= nil) -- which is where Ctrl-C comes from
  self.caller:message(message)
end

local function cancel(self)
  if self.asked and self.caller:message '{"cancel":1}' then return end -- its answer says so
  fail(self, 499, "Cancelled")
end

local function read_body(self)
  self.input = input.new(self.most, self.terminal ~= nil)
  if self.terminal then print_text(self, "korv: type the body; Ctrl-D ends it, Ctrl-C cancels\n", true) end
  self.caller:read(true)
end

-- An input without anything in it is no body.
local function whole(self)
  local body = self.input:text()
  self.input = nil
  ask(self, body:find "%S" and body or nil)
end

local function take_input(self, bytes)
  local outcome = self.input:feed(bytes)
  self.clogged = print_text(self, self.input:take_echo()) == false
  if self.clogged then self.caller:read(false) end
  if outcome == "ended" then return whole(self) end
  if outcome == "interrupted" then return cancel(self) end
  if outcome == "too long" then return too_large(self) end
end

-- What the core calls ----------------------------------------------------------------------------------------------------------------

function Command:opened()
  if self.problem then return complain(self, help.usage(self.problem), commandline.USAGE) end
  if self.prefix then return self:help() end
  local reads = self.body == "-" or not self.body and READS[self.verb]
  if reads then return read_body(self) end
  ask(self, self.body)
end

function Command:help()
  local text, problem
  if self.prefix == "" then
    text = help.guide(self.server, self.peer)
  else
    text, problem = help.about(self.server, self.peer, self.prefix)
  end
  if not text then return complain(self, ("korv: %s\n"):format(problem), 4) end
  print_text(self, text)
  finish(self, 0)
end

function Command:answer(_, code, body, more)
  if self.over then return end
  if code < 200 or code > 299 then return print_failure(self, code, body) end
  local just_ends = self.streams and not more and body == "null"
  self.streams = more
  if not just_ends then print_body(self, body) end
  if not more then finish(self, 0) end
end

function Command:data(bytes)
  if self.over then return end
  if self.input then return take_input(self, bytes) end
  if bytes and bytes:find("\3", 1, true) then cancel(self) end
end

function Command:drained()
  if not self.clogged or self.over then return end
  self.clogged = false
  self.caller:read(true)
end

function Command:interrupted()
  if not self.over then cancel(self) end
end

function Command:stopping()
  if not self.over and not self.asked then fail(self, 503, "The server is stopping") end
end

local HANDLERS = { "opened", "answer", "data", "drained", "interrupted", "stopping" }

--- Speaks for the server on a channel that a command came on.
-- @tparam table caller the core's
-- @tparam table peer
-- @tparam string command
-- @tparam ?table terminal nil: there is none
-- @tparam table server
-- @treturn table handlers for the core
function commandline.open(caller, peer, command, terminal, server)
  local self, problem = parse(command)
  self = setmetatable(self or { problem = problem }, Command)
  self.caller, self.peer, self.terminal, self.server = caller, peer, terminal, server
  self.most = server.options.max_message_bytes or MESSAGE_BYTES
  local handlers = {}
  for _, name in ipairs(HANDLERS) do
    handlers[name] = function(...) return self[name](self, ...) end
  end
  return handlers
end

return commandline
