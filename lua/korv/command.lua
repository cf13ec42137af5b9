--- The command `korv`: `serve` and `call`. Everything that it does goes through the modules that a program would use.
-- @module korv.command

local argparse = require "argparse"
local korv = require "korv"
local pretty = require "korv.pretty"
local serve = require "korv.serve"
local uv = require "luv"

local command = {}

local USAGE, FAILED = 64, 1

local function complain(...) io.stderr:write("korv: ", string.format(...), "\n") end

-- Converters for argparse: a value, or nil and what is wrong with it.
local function whole_number(name, least, most)
  return function(text)
    local number = math.tointeger(tonumber(text))
    if number and number >= least and number <= most then return number end
    return nil, ("%s must be a whole number from %d to %d, not '%s'"):format(name, least, most, text)
  end
end

local function seconds(name)
  return function(text)
    local number = tonumber(text)
    if number and number > 0 and number < 1e9 then return number end
    return nil, ("%s must be a positive number of seconds, not '%s'"):format(name, text)
  end
end

-- serve -----------------------------------------------------------------------------------------------------------------------------

local function workers(text)
  if text == "auto" then return #uv.cpu_info() end
  return whole_number("--workers", 1, 1024)(text)
end

local function add_serve(parser)
  local added = parser:command("serve", "Serve endpoint scripts.")
  added:argument("script", "A script, or a folder that stands for its *.lua."):args "+"
  added:option("--host", "The address to listen on (default: all interfaces, IPv6 and IPv4)."):argname "ADDR"
  added:option("--port", "The port; 0 takes a free one (default: 8022)."):argname "N":convert(whole_number("--port", 0, 65535))
  added:option("--host-key", "A host key; made where it is missing (default: ssh_host_ed25519_key). May be given again.")
    :argname "FILE":count "*"
  added:option("--authorized-keys", "Who may log in (default: authorized_keys)."):argname "FILE"
  added:option("--workers", "How many processes serve; auto: one for each processor (default: 1)."):argname "N":convert(workers)
  added:flag("--no-watch", "Load scripts and keys anew on SIGHUP only, not whenever they change.")
  added:flag("--check", "Load everything, say what was found, and end.")
  added:option("--drain", "Seconds that requests under way get when the server is told to end (default: 30).")
    :argname "S":convert(seconds "--drain")
  added:option("--log-level", "What goes to stderr at the least: debug, info (the default; a line for each request), warn or error.")
    :argname "LEVEL":choices { "debug", "info", "warn", "error" }
  added:option("--log-format", "text or json (default: text on a terminal, else json)."):argname "FORMAT":choices { "text", "json" }
  added:epilog [[
Signals: SIGTERM and SIGINT let requests under way end, a second one ends at once; SIGHUP loads scripts and keys anew; SIGUSR2 starts a
new server on the same sockets and lets this one end.

Examples:
  cat ~/.ssh/id_ed25519.pub >> authorized_keys
  korv serve --port 8022 endpoints/
  korv serve --workers auto --no-watch --log-level warn endpoints/]]
end

function command.serve(options)
  local status, message = serve(options)
  if message then complain("%s", message) end
  return status
end

-- call ------------------------------------------------------------------------------------------------------------------------------

local function add_call(parser)
  local call = parser:command("call", "Call an endpoint and print the body of its answer.")
  call:argument("target", "[USER@]HOST[:PORT]; an IPv6 address in brackets: [::1]:8022."):argname "HOST"
  call:argument("verb", "GET, STORE, UPDATE or DELETE."):argname "VERB":convert(string.upper)
  call:argument("resource", "Such as /hello or '/search?q=lua'."):argname "RESOURCE"
  call:argument("body", "JSON; - reads it from standard input."):argname "BODY":args "?"
  call:option("-i --identity", "A private key (default: ~/.ssh/id_ed25519, id_ecdsa, id_rsa). May be given again."):argname "KEY":count "*"
  call:option("--known-hosts", "The keys of known hosts (default: ~/.ssh/known_hosts)."):argname "FILE"
  call:flag("--accept-new", "Add the key of an unknown host to that file; a changed one is refused all the same.")
  call:flag("--ssh", "Go through the ssh command, with its configuration, agent and jump hosts.")
  call:flag("--raw", "Print a body that is a string as it stands, without JSON's quotes.")
  call:option("--timeout", "Seconds to wait (default: 30)."):argname "S":convert(seconds "--timeout")
  call:epilog [[
What is not a success goes to standard error as one line, `404 null`, and the exit status is the first digit of its code; 1 is a
connection that failed.

Examples:
  korv call localhost GET /hello
  korv call -i ~/.ssh/id_ed25519 api.example:8022 STORE /users/ann '{"age": 7}'
  echo '{"age": 7}' | korv call api.example STORE /users/ann -
  korv call --raw api.example GET '/korv/metrics?format=prometheus']]
end

-- [USER@]HOST[:PORT]. nil: it is none.
local function parse_target(text)
  local user, rest = text:match "^(.+)@([^@]*)$"
  rest = rest or text
  local host, port = rest:match "^%[([^%[%]]+)%]:(%d+)$"
  if not host then host = rest:match "^%[([^%[%]]+)%]$" end
  if not host then host, port = rest:match "^([^:]+):(%d+)$" end
  if not host then host = rest:match "^[^:%[%]@]+$" end
  port = tonumber(port)
  if port and (port < 1 or port > 65535) then return nil end
  return host, port, user
end

local function read_body(text)
  if text == "-" then text = io.read "a" end
  if text == nil then return nil end
  local body, message = korv.json.decode(text)
  if body == nil then return nil, ("the body is not JSON: %s (text needs quotes of its own: '\"text\"')"):format(message) end
  return body
end

local function show(response, raw)
  local body = response.body
  if response.code < 200 or response.code > 299 then
    io.stderr:write(("%d %s\n"):format(response.code, korv.json.encode(body)))
    return response.code // 100
  end
  if raw and type(body) == "string" then
    io.stdout:write(body)
    return 0
  end
  local on_terminal = uv.guess_handle(1) == "tty"
  io.stdout:write(on_terminal and pretty(body) or korv.json.encode(body), "\n")
  return 0
end

local function connect(options, host, port, user)
  return korv.client {
    host = host, port = port, user = user, client_keys = #options.identity > 0 and options.identity or nil,
    known_hosts = options.known_hosts, accept_new = options.accept_new, ssh = options.ssh, timeout = options.timeout,
  }
end

function command.call(options)
  local host, port, user = parse_target(options.target)
  if not host then
    complain("%s is not [USER@]HOST[:PORT]", options.target)
    return USAGE
  end
  local body, message = read_body(options.body)
  if message then
    complain("%s", message)
    return USAGE
  end
  local client, response
  client, message = connect(options, host, port, user)
  if client then response, message = client:call(options.verb, options.resource, body) end
  if client then client:close() end
  if not response then
    complain("%s", message)
    return FAILED
  end
  return show(response, options.raw)
end

-- The command line ------------------------------------------------------------------------------------------------------------------

local function new_parser()
  local parser = argparse("korv", "An API over SSH: endpoints are Lua functions, clients log in with the SSH keys that they have.")
  parser:command_target "command"
  parser:require_command(true)
  parser:flag("--version", "Print the version."):action(function()
    print("korv " .. korv.version)
    os.exit(0)
  end)
  add_serve(parser)
  add_call(parser)
  return parser
end

--- Runs the command.
-- @tparam {string,...} arguments
-- @treturn int the exit status
function command.main(arguments)
  local parser = new_parser()
  local last = #arguments
  if last > 4 and arguments[1] == "call" and arguments[last]:find "^%-%d" then table.insert(arguments, last, "--") end -- a number as body
  local ok, options = parser:pparse(arguments)
  if not ok then
    complain("%s; see korv --help", (options:gsub("%s*\n%s*", "; ")))
    return USAGE
  end
  return command[options.command](options)
end

return command
