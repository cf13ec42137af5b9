--- README.md and docs/ against the program. The README is followed as a stranger would, from a fresh checkout in a folder of its own:
-- its files are saved, its commands run on a terminal, and what they print is compared with what it shows (`…` there stands for
-- anything within a line). Then every path, option, name and link in the documents has to exist, and the reference has to come out clean.

local support = require "spec.support"
local uv = require "luv"

local README = "README.md"
local SHORT, LONG = 30, 600 -- seconds: for a command, and for those that compile

-- What of the checkout a stranger needs to follow the README.
local CHECKOUT = { "CMakeLists.txt", "LICENSE", README, "docs", "lua", "scripts", "spec", "src" }

-- Commands that a spec replaces, or (false) leaves out: the suite does not run itself.
local CHANGE = "sed -i 's/Hello World!/Hello there!/' hello.lua"
local INSTEAD = { ["scripts/demo"] = "scripts/demo --once", ["scripts/test"] = false,
  [CHANGE] = CHANGE .. "\nuntil korv call localhost GET /hello | grep -q there; do :; done" } -- a person is not that fast

-- Options of other commands than korv's.
local FOREIGN = { ["--no-children"] = true, ["--sort"] = true, ["--stdio"] = true, ["--call-graph"] = true, ["--children"] = true, -- perf
  ["--lua-version"] = true, ["--deps-mode"] = true, ["--tree"] = true, ["--bin"] = true } -- LuaRocks

-- Libraries whose functions documents may name though nobody calls them.
local LIBRARIES = { ssh = true, uv = true, lua = true, luv = true }

-- Sections that begin with a new shell, in the checkout's folder.
local FRESH = { ["Try it"] = true, ["Install"] = true }

local function files_in(folder, pattern)
  local found, scan = {}, assert(uv.fs_scandir(support.root .. "/" .. folder))
  local name = uv.fs_scandir_next(scan)
  while name do
    if name:find(pattern) then found[#found + 1] = name end
    name = uv.fs_scandir_next(scan)
  end
  table.sort(found)
  return found
end

local function read(path) return assert(support.read(support.root .. "/" .. path)) end

local DOCUMENTS = { README }
for _, name in ipairs(files_in("docs", "%.md$")) do DOCUMENTS[#DOCUMENTS + 1] = "docs/" .. name end

-- The fenced blocks of a text, in order: language, text, section (the heading of second level above it).
local function blocks_of(text)
  local blocks, open, section = {}, nil, nil
  for line in text:gmatch "([^\n]*)\n" do
    local language = line:match "^```(.*)$"
    if open and language then
      open = nil
    elseif open then
      open.text = open.text .. line .. "\n"
    elseif language then
      open = { language = language, text = "", section = section }
      blocks[#blocks + 1] = open
    else
      section = line:match "^## (.+)$" or section
    end
  end
  assert(not open, "a block without an end")
  return blocks
end

-- A text without its fenced blocks.
local function prose_of(text)
  return (("\n" .. text):gsub("\n```[^\n]*\n.-\n```%f[\n]", "\n"))
end

-- A port that nobody has -----------------------------------------------------------------------------------------------------------

local port

local function free_port()
  local socket = uv.new_tcp()
  assert(socket:bind("0.0.0.0", 0))
  local found = socket:getsockname().port
  socket:close()
  uv.run "nowait"
  return tostring(found)
end

-- The README's port is 8022, most often without saying so; here it is `port`.
local function on_our_port(text)
  text = text:gsub("8022", port)
  text = text:gsub("korv serve ", "korv serve --port " .. port .. " ")
  text = text:gsub("(korv call [^\n]*localhost) ", "%1:" .. port .. " ")
  return (text:gsub('host = "localhost" }', 'host = "localhost", port = ' .. port .. " }"))
end

local function listens()
  local socket, answer = uv.new_tcp(), nil
  socket:connect("127.0.0.1", tonumber(port), function(problem) answer = problem or "yes" end)
  support.wait_for(function() return answer end)
  socket:close()
  uv.run "nowait"
  return answer == "yes"
end

-- The stranger's shell -------------------------------------------------------------------------------------------------------------

local shell = {} -- file names: home, environment, cwd

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function new_shell()
  support.write("cwd", support.path "korv" .. "\n")
  support.write("environment", ("export HOME=%s PATH=%s:\"$PATH\"\nunset KORV_BUILD LUA_PATH LUA_CPATH LUA_INIT USER\n"):format(
    quote(support.path "home"), quote(support.path "bin")))
end

local function set_up_stranger()
  assert(uv.fs_mkdir(support.path "korv", 448))
  for _, name in ipairs(CHECKOUT) do
    assert(os.execute(("cp -r %s %s"):format(quote(support.root .. "/" .. name), quote(support.path "korv"))))
  end
  assert(os.execute(("cp %s/*.rockspec %s"):format(quote(support.root), quote(support.path "korv"))))
  assert(uv.fs_mkdir(support.path "home", 448))
  assert(uv.fs_mkdir(support.path "home/.ssh", 448))
  support.run { "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ann", "-f", support.path "home/.ssh/id_ed25519" }
  -- OpenSSH takes its folder from the user database, not from HOME
  assert(uv.fs_mkdir(support.path "bin", 448))
  local ssh = support.write("bin/ssh", [[
#!/bin/sh
exec /usr/bin/ssh -F none -i "$HOME/.ssh/id_ed25519" -o IdentitiesOnly=yes -o UserKnownHostsFile="$HOME/.ssh/known_hosts" "$@"
]])
  assert(uv.fs_chmod(ssh, 448))
  new_shell()
end

-- A script that goes on where the last one stopped.
local function script_of(text)
  shell.count = (shell.count or 0) + 1
  return support.write("script" .. shell.count, ("cd \"$(cat %s)\" && . %s\n%s"):format(quote(support.path "cwd"),
    quote(support.path "environment"), text))
end

-- Runs commands on a terminal and returns what appears on it. must_succeed: each of them has to.
local function run(commands, must_succeed)
  local script = script_of(("%s\nstatus=$?\npwd >%s\nexport -p >%s\nexit $status\n"):format(commands, quote(support.path "cwd"),
    quote(support.path "environment")))
  local command = "sh " .. (must_succeed and "-e " or "") .. quote(script)
  local done = support.run({ "script", "-qec", command, "/dev/null" }, { timeout = must_succeed and LONG or SHORT,
    env = { SHELL = "/bin/sh" } })
  local output = done.stdout:gsub("\r\n", "\n")
  if must_succeed then assert(done.code == 0, ("%s\nended with status %d:\n%s"):format(commands, done.code, output)) end
  return output
end

local server

local function stop_server()
  if not server then return end
  local crashed, well = server.code ~= nil, server:stop()
  assert(not crashed and well, server:describe "did not end well")
  server = nil
end

local function start_server(command)
  stop_server()
  local on_terminal = command:find "^korv serve " and " --log-format text" or "" -- as it is on one by default
  server = support.start { "sh", script_of("exec " .. on_our_port(command) .. on_terminal .. " 2>&1\n") }
  local up = support.wait_for(function() return server.code or listens() end) and not server.code
  assert(up, server:describe "does not listen")
end

local function is_server(command) return command:find "^korv serve " or command:find "^lua5%.4 server%.lua" end

-- What is shown and what appeared: equal, but that … stands for anything within a line.
local function assert_shows(shown, output, command)
  local pattern = "^" .. on_our_port(shown):gsub("%p", "%%%0"):gsub("…", "[^\n]*") .. "$"
  assert(output:find(pattern), ("%s\n\nREADME shows:\n%s\nbut it prints:\n%s"):format(command, shown, output))
end

-- The commands of a console block, each with what it prints.
local function exchanges(text)
  local list = {}
  for line in text:gmatch "([^\n]*)\n" do
    local command = line:match "^%$ (.*)$"
    if command then
      list[#list + 1] = { command = command, shown = "" }
    else
      assert(#list > 0, "a console block begins with a command: " .. text)
      list[#list].shown = list[#list].shown .. line .. "\n"
    end
  end
  return list
end

local follow = {} -- by language

function follow.console(block)
  for _, exchange in ipairs(exchanges(block.text)) do
    if is_server(exchange.command) then
      start_server(exchange.command)
      local _, lines = exchange.shown:gsub("\n", "")
      support.wait_for(function() return select(2, server.stdout:gsub("\n", "")) >= lines end)
      assert_shows(exchange.shown, server.stdout, exchange.command)
    else
      assert_shows(exchange.shown, run(on_our_port(exchange.command)), exchange.command)
    end
  end
end

local last_output

function follow.sh(block)
  local command = block.text:gsub("\n$", "")
  local instead = INSTEAD[command]
  if instead == false then return end
  if is_server(command) then
    start_server(command)
  else
    last_output = run(on_our_port(instead or command), true)
  end
end

-- A part of what the last command printed.
function follow.text(block)
  assert(last_output and last_output:find(block.text, 1, true), ("README shows:\n%s\nbut it prints:\n%s"):format(block.text, last_output))
end

local scripts = {} -- those of the saved files that register endpoints

function follow.lua(block)
  local name = block.text:match "^%-%- ([%w_]+%.lua)\n"
  assert(name, "a Lua block begins with the name of its file: " .. block.text)
  local folder = support.read(support.path "cwd"):match "^[^\n]+"
  local file = assert(io.open(folder .. "/" .. name, "w"))
  file:write(on_our_port(block.text))
  file:close()
  if block.text:find("return function(app)", 1, true) then scripts[#scripts + 1] = folder .. "/" .. name end
end

describe(README, function()
  local section

  setup(function()
    port = free_port()
    set_up_stranger()
  end)
  teardown(support.finish)

  for i, block in ipairs(blocks_of(read(README))) do
    it(("does what it says: %d, %s (%s)"):format(i, block.text:match "[^\n]*", block.section), function()
      if block.section ~= section and FRESH[block.section] then new_shell() end
      section = block.section
      follow[block.language](block)
    end)
  end

  it("has scripts that can be served together, and middleware that logs", function()
    assert.equal(2, #scripts)
    support.write("cwd", support.path "hello" .. "\n")
    start_server("korv serve " .. table.concat(scripts, " "))
    run(on_our_port "korv call localhost GET /hello")
    local line = "ann: GET /hello %-> 200\n"
    support.wait_for(function() return server.stdout:find(line) end)
    assert(server.stdout:find(line), server.stdout)
  end)

  it("installs a korv that serves and calls without the checkout", function()
    assert.equal(support.path "home/korv/bin/korv" .. "\n", run "command -v korv")
    assert(os.execute("rm -r " .. quote(support.path "korv")))
    start_server "korv serve hello.lua"
    assert.equal('{\n  "msg": "Hello there!"\n}\n', run(on_our_port "korv call localhost GET /hello"))
    assert.equal("Hello there!\n201\t42\n", run "lua5.4 client.lua")
    stop_server()
  end)
end)

-- What the documents name ----------------------------------------------------------------------------------------------------------

-- All code of a document: fenced blocks, and spans in backticks, which are joined by newlines.
local function code_of(text)
  local parts = {}
  for _, block in ipairs(blocks_of(text)) do parts[#parts + 1] = block.text end
  for span in prose_of(text):gmatch "`([^`\n]+)`" do parts[#parts + 1] = span end
  return table.concat(parts, "\n") .. "\n"
end

local function exists(path) return uv.fs_stat(support.root .. "/" .. path) ~= nil end

-- The text of all files of the program that can be named in a document.
local function sources()
  local texts = {}
  for _, folder in ipairs { "src/wire", "src/net", "src/host", "src/korv", "lua/korv", "spec" } do
    for _, name in ipairs(files_in(folder, "%.[chlua]+$")) do
      if name ~= "docs_spec.lua" then texts[#texts + 1] = read(folder .. "/" .. name) end
    end
  end
  return table.concat(texts, "\n")
end

local function slug(heading) return (heading:lower():gsub("[^%w%s_-]", ""):gsub("%s", "-")) end

local function anchors_of(text)
  local anchors = {}
  for heading in prose_of(text):gmatch "\n#+ ([^\n]+)" do anchors[slug(heading)] = true end
  return anchors
end

local FOLDERS = { endpoints = true, systemd = true } -- of scripts/

describe("the documents", function()
  local help, options_of_scripts, source

  setup(function()
    help = ""
    for _, command in ipairs { "", "serve", "call", "stream", "describe", "keygen" } do
      local words = { support.korv }
      if command ~= "" then words[2] = command end
      words[#words + 1] = "--help"
      help = help .. support.run(words).stdout
    end
    options_of_scripts = ""
    for _, name in ipairs(files_in("scripts", "^%l+$")) do
      if exists("scripts/" .. name) and not FOLDERS[name] then options_of_scripts = options_of_scripts .. read("scripts/" .. name) end
    end
    source = sources()
  end)
  teardown(support.finish)

  local function is_named(list, word)
    return list:find("%f[%w_-]" .. word:gsub("%p", "%%%0") .. "%f[^%w_-]") ~= nil
  end

  local found = {}

  for _, document in ipairs(DOCUMENTS) do
    local text = read(document)

    it(document .. " names files that exist", function()
      for _, folder in ipairs { "src", "lua", "scripts", "spec", "docs" } do
        for path in text:gmatch("%f[%w_./-](" .. folder .. "/[%w_./-]*)") do
          path = path:gsub("[./]+$", "")
          assert(exists(path), ("%s names %s, which does not exist"):format(document, path))
          found[path] = true
        end
      end
    end)

    it(document .. " names options that there are", function()
      for option in code_of(text):gmatch "%f[%w-](%-%-%l[%l-]+)" do
        local known = FOREIGN[option] or is_named(help, option) or is_named(options_of_scripts, option)
        assert(known, ("%s names %s, which no command has"):format(document, option))
      end
    end)

    it(document .. " names functions, fields and options that are in the source", function()
      for word in code_of(text):gsub("[%w_.-]*/[%w_./-]*", " "):gmatch "%f[%w_.]([%a_][%w_]*)%f[^%w_]" do
        if word:find "%l_%l" and not LIBRARIES[word:match "^%l+"] then
          assert(is_named(source, word), ("%s names `%s`, which is nowhere in the source"):format(document, word))
        end
      end
    end)

    it(document .. " has links that lead somewhere", function()
      for target in prose_of(text):gmatch "%]%(([^)%s]+)%)" do
        local path, anchor = target:match "^([^#]*)#?(.*)$"
        if not target:find "^%a+:" then
          local file = path == "" and document or (document:match "^(.*/)" or "") .. path
          file = file:gsub("[^/]+/%.%./", "")
          assert(exists(file), ("%s links to %s, which does not exist"):format(document, target))
          if anchor ~= "" then assert(anchors_of(read(file))[anchor], ("%s links to %s, which is no heading"):format(document, target)) end
        end
      end
    end)
  end

  it("are searched as they should be", function()
    assert.is_true(found["scripts/demo"] and found["src/net/net.c"] and found["lua/korv/app.lua"])
  end)
end)

-- The manual page --------------------------------------------------------------------------------------------------------------------

-- Its sections of commands: what each says of options, as in -i KEY, --identity KEY.
local function manual_commands(page)
  local commands, current = {}, nil
  for line in page:gmatch "[^\n]+" do
    local name = line:match "^%.Ss korv (%l+)$"
    if line:find "^%.S[sh]" then current = nil end
    if name then
      current = {}
      commands[name] = current
    end
    local argument = line:match "^%.It Fl .* Ar (%S+)$"
    for flag in (current and line:find "^%.It Fl" and line or ""):gmatch "%f[%w-](%-?[%w-]+)%f[ ,\0]" do
      if flag:find "^%-%l" or #flag == 1 and flag ~= argument then current["-" .. flag] = argument or "" end
    end
  end
  return commands
end

-- The options in a command's help, in the same form.
local function helped_options(help)
  local options = {}
  for line in help:match("\nOptions:\n(.-)\n\n"):gmatch "[^\n]+" do
    local label = line:sub(1, 26):find "^ +%-" and line:match "^ +(%-.-)%s%s" or line:match "^ +(%-[%w- ]+)$" or ""
    for flag, argument in label:gmatch "(%-%-?[%w-]+) ?(%u*)" do options[flag] = argument end
  end
  options["-h"], options["--help"] = nil, nil
  return options
end

describe("the manual page", function()
  local page = read "docs/korv.1"
  local commands = manual_commands(page)

  teardown(support.finish)

  local function help_of(command)
    local done = support.run { support.korv, command, "--help" }
    assert.equal(0, done.code, done.stderr)
    return done.stdout
  end

  it("is sound", function()
    local done = support.run({ "man", "-l", "--warnings", "-E", "UTF-8", "-Tutf8", support.root .. "/docs/korv.1" },
      { env = { LC_ALL = "C.UTF-8" } })
    assert.same({ 0, "" }, { done.code, done.stderr })
    assert.matches("EXIT STATUS", done.stdout:gsub(".\8", ""))
  end)

  it("has the commands that there are", function()
    local listed = support.run({ support.korv, "--help" }).stdout:match "\nCommands:\n(.-)\n\n"
    local names = {}
    for name in (listed .. "\n"):gmatch " +(%l+) [^\n]*\n" do names[name] = true end
    assert.is_true(names.serve and names.keygen)
    for name in pairs(names) do
      assert(commands[name], "docs/korv.1 has no section of korv " .. name)
      assert(page:find("\n.Cm " .. name .. "\n", 1, true), "the synopsis of docs/korv.1 misses korv " .. name)
    end
    for name in pairs(commands) do assert(names[name], "docs/korv.1 tells of korv " .. name .. ", which is no command") end
  end)

  for name, own in pairs(commands) do
    it(("has the options and arguments of korv %s, and no others"):format(name), function()
      local help = help_of(name)
      local given = helped_options(help)
      local shared = (name == "stream" or name == "describe") and commands.call or {}
      for option, argument in pairs(given) do
        assert.equal(argument, own[option] or shared[option], ("docs/korv.1, korv %s, %s"):format(name, option))
      end
      for option in pairs(own) do assert(given[option], ("korv %s has no %s, which docs/korv.1 tells of"):format(name, option)) end
      for argument in help:match("^(.-)\n\n"):gmatch "<(%u+)>" do
        assert(page:find("Ar[^\n]* " .. argument .. "%f[^%u]"), ("docs/korv.1 misses the argument %s of korv %s"):format(argument, name))
      end
    end)
  end
end)

-- The reference --------------------------------------------------------------------------------------------------------------------

-- The modules that users meet, beside korv itself.
local PUBLIC = { server = true, client = true, app = true, task = true, exec = true, log = true, test = true }

describe("the reference", function()
  local function page(name) return assert(support.read(support.path("korv/build/docs/" .. name .. ".html"))) end

  setup(function()
    assert(uv.fs_mkdir(support.path "korv", 448))
    for _, name in ipairs { "docs", "lua", "scripts" } do
      assert(os.execute(("cp -r %s %s"):format(quote(support.root .. "/" .. name), quote(support.path "korv"))))
    end
  end)
  teardown(support.finish)

  it("comes out of LDoc without a warning", function()
    local done = support.run { support.path "korv/scripts/docs" }
    assert.same({ 0, "" }, { done.code, done.stderr }, done.stdout)
  end)

  it("tells of everything that `korv` has", function()
    local html = page "modules/korv"
    for name in pairs(require "korv") do
      assert.truthy(html:find(('<a name = "%s">'):format(name), 1, true), "the reference does not tell of korv." .. name)
    end
  end)

  it("tells of every option of a server, a client and a test", function()
    for _, module in ipairs { "server", "client", "test" } do
      local html = page("modules/korv." .. module):gsub('<a href="[^"]*">([^<]*)</a>', "<code>%1</code>") -- a name that is also a link
      local list = read("lua/korv/" .. module .. ".lua"):match "\nlocal OPTIONS = (%b{})"
      for option in list:gmatch "([%l_]+) = " do
        assert.truthy(html:find("<code>" .. option .. "</code>", 1, true), ("the reference of korv.%s misses %s"):format(module, option))
      end
    end
  end)

  it("is of the public modules alone", function()
    local index = page "index"
    for _, name in ipairs(files_in("lua/korv", "%.lua$")) do
      local module = name:gsub("%.lua$", "")
      assert.equal(PUBLIC[module], index:find(">korv." .. module .. "<", 1, true) and true, module)
    end
  end)
end)
