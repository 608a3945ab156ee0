# Completion of seal-monitor's command line for bash; for zsh after "autoload -U bashcompinit;
# bashcompinit". A test compares it with what the program takes.

_seal_monitor_filters="--executable --host --kind --likely --limit --operation --severity --since --sort --until --verdict --workload"

# Command, or command and verb -> its flags.
declare -gA _seal_monitor_flags=(
    [run]="--attach --config --events-file --output --web.config.file --web.listen-address"
    [demo]="--attach --config"
    [exec]="--attach --fail-on --json --report --user"
    [doctor]="--attach --config --json"
    [check-config]=""
    [schema]="--ecs --ocsf --opentelemetry"
    [symbolize]="--search --verbose"
    [incidents list]="--config --database --json $_seal_monitor_filters"
    [incidents show]="--config --database --json"
    [incidents timeline]="--config --database --json"
    [incidents report]="--config --database --output-file $_seal_monitor_filters"
    [incidents export]="--config --database --output-file"
    [incidents backup]="--config --database --output-file"
    [fleet list]="--from --json --password-file $_seal_monitor_filters"
    [fleet show]="--from --json --password-file"
    [fleet hosts]="--from --json --limit --password-file"
    [fleet timeline]="--from --json --limit --password-file --since --until"
    [fleet report]="--from --output-file --password-file $_seal_monitor_filters"
    [posture]="--all --by --json --pid"
    [detach]="--config"
)

# Flag -> its values.
declare -gA _seal_monitor_values=(
    [--attach]="auto fexit tracepoint raw_tracepoint"
    [--output]="auto pretty json none"
    [--fail-on]="denial fault bypass denial,fault denial,fault,bypass"
    [--kind]="violation denial fault bypass seal health all"
    [--likely]="attack bug leak unknown handled"
    [--severity]="info warning critical"
    [--sort]="worst last count"
    [--verdict]="sealed unverified not_sealed"
    [--by]="process executable workload"
)

_seal_monitor() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local word command="" verb=""
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
            --) # the command that exec runs
                mapfile -t COMPREPLY < <(compgen -c -f -- "$current")
                return ;;
            -*) ;;
            *)
                if [[ -z $command ]]; then
                    command=$word
                elif [[ $command == @(incidents|fleet) && -z $verb ]]; then
                    verb=$word
                fi ;;
        esac
    done
    if [[ -n ${_seal_monitor_values[$previous]-} ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${_seal_monitor_values[$previous]}" -- "$current")
        return
    fi
    case $previous in
        --config | --database | --events-file | --output-file | --password-file | --report | --web.config.file | -o)
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return ;;
        --json)
            if [[ $command == exec ]]; then
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
                return
            fi ;;
        --search)
            mapfile -t COMPREPLY < <(compgen -d -- "$current")
            return ;;
        --user)
            mapfile -t COMPREPLY < <(compgen -u -- "$current")
            return ;;
    esac
    if [[ -z $command && $current == -* ]]; then
        word="--help --version"
    elif [[ -z $command ]]; then
        word="run demo exec doctor check-config schema symbolize incidents fleet posture detach"
    elif [[ $command == incidents && -z $verb ]]; then
        word="list show timeline report export backup"
    elif [[ $command == fleet && -z $verb ]]; then
        word="list show hosts timeline report"
    elif [[ $current == -* ]]; then
        word="--help ${_seal_monitor_flags[$command${verb:+ $verb}]-}"
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$word" -- "$current")
}

complete -o filenames -F _seal_monitor seal-monitor
