--- Holds the architecture of docs/design.md: which layer may include and require what.

local uv = require "luv"

local ROOT = debug.getinfo(1, "S").source:match "^@(.-)spec/layers_spec%.lua$"
ROOT = ROOT == "" and "." or ROOT

-- A layer of src/: the layers and the libraries whose headers its files may include.
local LAYERS = {
  wire = { layers = {}, libraries = { "libdeflate.h", "zlib.h" } },
  net = { layers = { "wire" }, libraries = { "libssh/", "openssl/", "uv.h" } },
  host = { layers = { "wire" }, libraries = { "lua.h", "lauxlib.h", "lualib.h" } },
  korv = { layers = { "wire", "net", "host" }, libraries = { "lua.h", "lauxlib.h", "lualib.h", "uv.h", "luv/" } },
}

local LIBRARIES = { "libdeflate.h", "zlib.h", "libssh/", "openssl/", "uv.h", "lua.h", "lauxlib.h", "lualib.h", "luv/" }

-- A module of lua/korv: the modules of korv's that it may require. What is not here may require none.
local MODULES = {
  permissions = { "router" },
  app = { "permissions", "router", "log" },
  keys = { "keyoptions" },
  escape = { "core" },
  log = { "core", "escape" },
  task = { "core" },
  watch = { "log" },
  notify = { "core", "log" },
  service = { "core", "log", "notify" },
  every = { "core" },
  metrics = { "core", "task" },
  modules = { "log" },
  generation = { "core", "app", "every", "loader", "log", "modules", "task" },
  credentials = { "core", "keyoptions", "keys", "log" },
  help = { "escape", "permissions" },
  introspection = { "core", "help", "metrics" },
  commandline = { "core", "escape", "help", "input", "pretty" },
  typed = { "commandline", "console" },
  responder = { "core", "app", "log" },
  server = { "core", "app", "credentials", "generation", "introspection", "log", "metrics", "options", "responder", "service",
    "task", "typed", "watch" },
  test = { "core", "app", "generation", "options", "responder", "stream", "task" },
  identity = { "core" },
  exec = { "task" },
  stream = { "core", "task" },
  client = { "core", "identity", "log", "options", "ssh", "stream", "task" },
  ssh = { "core" },
  pretty = { "core", "escape" },
  lineedit = { "keystrokes", "width" },
  console = { "core", "escape", "help", "lineedit", "log", "pretty", "task", "version" },
  ipc = { "core" },
  transaction = { "core" },
  child = { "core", "ipc", "log" },
  supervisor = { "child", "log", "transaction" },
  worker = { "core", "ipc", "log", "watch" },
  init = { "core", "app", "every", "log", "task", "server", "client", "exec", "test", "version" },
  serve = { "core", "init", "log", "service", "supervisor", "worker" },
  keygen = { "core", "identity" },
  command = { "core", "escape", "help", "init", "keygen", "pretty", "serve" },
}

local function files(folder, pattern)
  local found, scan = {}, assert(uv.fs_scandir(ROOT .. "/" .. folder))
  local name = uv.fs_scandir_next(scan)
  while name do
    if name:find(pattern) then found[#found + 1] = name end
    name = uv.fs_scandir_next(scan)
  end
  assert(#found > 0, "nothing in " .. folder)
  return found
end

local function read(path)
  local file = assert(io.open(ROOT .. "/" .. path))
  local text = file:read "a"
  file:close()
  return text
end

local function set(list)
  local members = {}
  for _, member in ipairs(list) do members[member] = true end
  return members
end

local function starts_with_any(text, prefixes)
  for _, prefix in ipairs(prefixes) do
    if text:sub(1, #prefix) == prefix then return true end
  end
  return false
end

-- Calls found(path, header) for each #include in a layer.
local function each_include(layer, pattern, found)
  for _, name in ipairs(files("src/" .. layer, "%.[ch]$")) do
    local path = ("src/%s/%s"):format(layer, name)
    for header in read(path):gmatch(pattern) do found(path, header) end
  end
end

describe("the layers", function()
  for layer, may in pairs(LAYERS) do
    it(("src/%s includes only what lies below it"):format(layer), function()
      local allowed = set(may.layers)
      each_include(layer, '#include "([^"]+)"', function(path, header)
        local other, file = header:match "^([^/]+)/(.+)$"
        assert.is_truthy(other, path .. ": name the layer of " .. header)
        if other == layer then return end
        assert.is_true(allowed[other] or false, path .. " includes " .. header)
        assert.equal(other .. ".h", file, path .. " includes more of a layer than its face")
      end)
      each_include(layer, "#include <([^>]+)>", function(path, header)
        if starts_with_any(header, LIBRARIES) then
          assert.is_true(starts_with_any(header, may.libraries), path .. " includes " .. header)
        end
      end)
    end)
  end

  it("src has no folder that is no layer", function()
    for _, name in ipairs(files("src", ".")) do assert.is_table(LAYERS[name], "src/" .. name) end
  end)

  it("lua/korv requires only what lies below it", function()
    for _, name in ipairs(files("lua/korv", "%.lua$")) do
      local module = name:match "^(.*)%.lua$"
      local allowed = set(MODULES[module] or {})
      for line in read("lua/korv/" .. name):gmatch "[^\n]+" do
        local required = not line:find "^%s*%-%-" and line:match 'require%s*%(?%s*"korv([^"]*)"'
        if required then
          local other = required == "" and "init" or required:sub(2)
          assert.is_true(allowed[other] or false, ("lua/korv/%s requires korv.%s"):format(name, other))
        end
      end
    end
  end)

  it("no file is over 500 lines", function()
    for _, folder in ipairs { "src/wire", "src/net", "src/host", "src/korv", "lua/korv", "spec" } do
      for _, name in ipairs(files(folder, "%.%a+$")) do
        local _, lines = read(folder .. "/" .. name):gsub("\n", "")
        assert.is_true(lines <= 500, ("%s/%s has %d lines"):format(folder, name, lines))
      end
    end
  end)
end)
